// Package trainerbridge runs training jobs and turns what they make into model versions.
//
// A data set on the control log starts a cycle: a reward model, a second one as referee, then the preference
// rounds (DPO and PCPO), each a job of its own. Plan derives the next step from the control state alone, so
// that a restart goes on where the log says. A job runs the Python package of ./trainer (embedded in the
// binary, see Extract) in a folder of its own; its result is stored under its digest before the log says that
// it finished. A candidate that failed a gate is registered as failed, with the gate that failed it, and is
// never loaded.
package trainerbridge
