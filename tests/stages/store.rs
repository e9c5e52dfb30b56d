//! Tests a store against what every store promises: `teststore s3://bucket/prefix`. It is a program of its own because
//! credentials come from the variables of a process.

fn main() {
    let address = std::env::args().nth(1).expect("the address of a store");
    let store = smelt_store::Store::open(&address).unwrap_or_else(|e| panic!("{e}"));
    smelt_store::conformance::all(&store);
    println!("{address} conforms");
}
