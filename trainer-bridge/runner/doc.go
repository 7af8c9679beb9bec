// Package runner is what the trainer bridge wants of a cluster: to run a script once under a name, and to say where it is.
//
// The packages below it speak to Ray, Kubernetes and Slurm. None of them knows what a training job is: files, retries, time limits
// and the meaning of an exit status are the bridge's, the same for all.
package runner
