//! Files that this program reads: regular ones only, of bounded length, and never a pipe that waits for a writer.
