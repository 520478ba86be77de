pub(crate) fn chart(_results: &crate::results::Results) -> crate::error::Result<String> {
    Err("not yet".into())
}
