//! A static program of a few bytes that exits with a code of its own: what the probe runs inside, on a host where nothing else is known
//! to be there.

/// The code that it exits with: nothing else in the way does.
pub(super) const EXIT_CODE: u8 = 42;

/// `exit(42)`: mov edi, 42; mov eax, 60; syscall. SOURCE: Intel's manual, volume 2; Linux's x86_64 system call table.
const CODE_X86_64: [u8; 12] = [0xbf, EXIT_CODE, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
/// `exit(42)`: mov x0, #42; mov x8, #93; svc #0. SOURCE: Arm's Architecture Reference Manual; Linux's generic system call table.
const CODE_AARCH64: [u32; 3] =
    [0xd280_0000 | (EXIT_CODE as u32) << 5, 0xd280_0000 | 93 << 5 | 8, 0xd400_0001];

/// SOURCE: elf.h, EM_X86_64 and EM_AARCH64.
const MACHINE_X86_64: u16 = 62;
const MACHINE_AARCH64: u16 = 183;
/// Where it is loaded: aligned to any page size in use.
const LOAD_ADDRESS: u64 = 0x40_0000;
const FILE_HEADER_BYTES: u16 = 64;
const PROGRAM_HEADER_BYTES: u16 = 56;

/// The program for this machine; `None` for an architecture that has none.
pub(super) fn program() -> Option<Vec<u8>> {
    match std::env::consts::ARCH {
        "x86_64" => Some(elf(MACHINE_X86_64, &CODE_X86_64)),
        "aarch64" => {
            let code: Vec<u8> = CODE_AARCH64.iter().flat_map(|word| word.to_le_bytes()).collect();
            Some(elf(MACHINE_AARCH64, &code))
        }
        _ => None,
    }
}

/// SOURCE: elf(5), Elf64_Ehdr and Elf64_Phdr.
fn elf(machine: u16, code: &[u8]) -> Vec<u8> {
    let headers = u64::from(FILE_HEADER_BYTES) + u64::from(PROGRAM_HEADER_BYTES);
    let size = headers + code.len() as u64;
    let mut file = Vec::new();
    // 64 bits, little-endian, ELF version 1, System V.
    file.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let halves = |file: &mut Vec<u8>, values: &[u16]| {
        values.iter().for_each(|value| file.extend_from_slice(&value.to_le_bytes()));
    };
    let words = |file: &mut Vec<u8>, values: &[u32]| {
        values.iter().for_each(|value| file.extend_from_slice(&value.to_le_bytes()));
    };
    let longs = |file: &mut Vec<u8>, values: &[u64]| {
        values.iter().for_each(|value| file.extend_from_slice(&value.to_le_bytes()));
    };
    // An executable, its entry behind the headers, one program header, no sections.
    halves(&mut file, &[2, machine]);
    words(&mut file, &[1]);
    longs(&mut file, &[LOAD_ADDRESS + headers, u64::from(FILE_HEADER_BYTES), 0]);
    words(&mut file, &[0]);
    halves(&mut file, &[FILE_HEADER_BYTES, PROGRAM_HEADER_BYTES, 1, 0, 0, 0]);
    // One segment, readable and executable: the whole file.
    words(&mut file, &[1, 5]);
    longs(&mut file, &[0, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 0x1000]);
    file.extend_from_slice(code);
    file
}
