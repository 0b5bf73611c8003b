//! Links the library so that it is never unmapped: the janitor thread may still be running in its
//! code when the BEAM purges the NIF module.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    match std::env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("macos") => {
            println!("cargo:rustc-cdylib-link-arg=-undefined");
            println!("cargo:rustc-cdylib-link-arg=dynamic_lookup");
        }
        _ => println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete"),
    }
}
