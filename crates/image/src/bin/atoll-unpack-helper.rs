//! The unpack helper as a program of its own, for tests: in a release the `atoll` binary plays this part.

fn main() -> std::process::ExitCode {
    atoll_image::unpack_helper_main()
}
