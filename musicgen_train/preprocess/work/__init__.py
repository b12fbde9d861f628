"""What a preprocessing run keeps on disk so that it can be killed, continued, shared and grown."""
