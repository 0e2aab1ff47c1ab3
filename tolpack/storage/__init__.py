"""Where files lie: folders of this machine, or of object storage, which URLs name."""
