//! What operators and relying parties ask: the frame is in the library, so that its parts can be tested.

use std::process::ExitCode;

fn main() -> ExitCode {
    imds_agent::imdsctl::main()
}
