//! stub
pub use nsnet_container as container;
pub use nsnet_host as host;
