//! fileop
