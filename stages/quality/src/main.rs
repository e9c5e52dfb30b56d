use std::process::ExitCode;

fn main() -> ExitCode {
    smelt_stage::main::<smelt_quality::Quality>()
}
