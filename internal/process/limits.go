package process

// Limits of a child and of what it starts. Zero is no limit.
type Limits struct {
	// MemoryBytes that each process may have of its own to write to (on Linux RLIMIT_DATA: what is mapped and shared, such as the
	// libraries of a GPU, does not count). Beyond it an allocation fails, and the process can say so.
	MemoryBytes int64
	// CPUs that it runs on, of those that this process may run on.
	CPUs int
}
