//! Access traces: any bytes are a trace, in which everything is in place, or an error with its line.
#![no_main]

#[path = "program.rs"]
mod program;

use std::io::Write;

fn seeds() -> Vec<(String, Vec<u8>)> {
    let packed = include_bytes!("../../tests/traces/programs.csv.gz");
    let mut lines = String::new();
    let mut text = flate2::bufread::MultiGzDecoder::new(&packed[..]);
    std::io::Read::read_to_string(&mut text, &mut lines).expect("the trace of the tests");
    let few: String = lines
        .lines()
        .take(40)
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zipped.write_all(few.as_bytes()).expect("memory");
    let zipped = zipped.finish().expect("memory");
    let texts = [
        "agent_id,seq,key,op\na,1,/x,read\nb,0,\"with,comma\",write\na,0,\"two\nlines\",read\n",
        "agent_id,seq,key,op,refs\na,18446744073709551615,k,read,x|y\na,1,k,read,\n",
        "agent_id,seq,key,op\r\na,1,k,raed\r\n",
        "agent_id,seq,key,op\n",
    ];
    let mut seeds: Vec<_> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    seeds.extend([
        zipped.clone(),
        zipped[..zipped.len() / 2].to_vec(),
        few.into_bytes(),
    ]);
    let named = seeds.into_iter().enumerate();
    named
        .map(|(index, bytes)| (format!("trace-{index}"), bytes))
        .collect()
}

libfuzzer_sys::fuzz_target!(
    init: helios::fuzzing::write_if_asked("trace", &seeds()),
    |bytes: &[u8]| program::read_trace(bytes)
);
