"""`flags-late`: a pair that forms the country behind the blocks that would recall its facts."""
