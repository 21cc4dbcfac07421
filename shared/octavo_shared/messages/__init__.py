"""MessagePack messages between services. New fields go last, with a default."""
