//! Timeline history files: `TIMELINE<TAB>SWITCHPOINT<TAB>REASON` a line.
