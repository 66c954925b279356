"""Writers of the 26 raw releases, in the layouts of their authors."""
