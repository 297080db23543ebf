"""Results of stages that are kept between compilations, so that a killed one goes on and a second one is short."""
