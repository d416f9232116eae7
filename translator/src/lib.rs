//! The binary translator: guest bytes to host code.
//!
//! Nothing is here yet: the interpreter is the only engine, and `--engine bt` is refused with a line that
//! says so. The interpreter is the reference that a translator will be proved against.
