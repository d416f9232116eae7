//! Measurements: how fast the engines, the software TLB and whole boots are, and by which command.
