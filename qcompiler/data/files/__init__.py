"""Files and folders as data: arrays, pictures, sounds, and how they are prepared."""
