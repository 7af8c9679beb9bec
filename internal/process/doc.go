// Package process runs child processes: Python jobs, and servers that must stay up.
//
// Children are started in a process group of their own, so that Ctrl-C reaches only the parent and a stop
// reaches the child's own children too, and with a parent-death signal, so that they do not outlive a parent
// killed with -9. The kernel ties that signal to the thread that started the child, not to the process
// (prctl(2), PR_SET_PDEATHSIG): each child is therefore started from a goroutine locked to its thread until
// the child has exited.
package process
