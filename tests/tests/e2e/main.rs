//! The one end-to-end test binary. `tamper`: the golden archive and every lie about it.

mod tamper;
