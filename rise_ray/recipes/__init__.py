"""Methods, one file each: their settings, and what they do in an iteration. No core imports one."""
