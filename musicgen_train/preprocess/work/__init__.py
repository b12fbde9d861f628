"""What a run keeps on disk so that it can be killed, resumed, shared and grown."""
