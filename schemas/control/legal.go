package control

import "slices"

// modelMoves are the states that a model.state command may leave for the one it names. The other states come with other
// commands: fetched with the registration, ramp with an experiment, champion and retained with a promotion or a decision.
var modelMoves = map[ModelState][]ModelState{
	ModelLoaded:   {ModelFetched},
	ModelProbed:   {ModelLoaded},
	ModelShadow:   {ModelProbed},
	ModelDrained:  {ModelRetained},
	ModelUnloaded: {ModelDrained},
	ModelFailed: { // from any other
		ModelFetched, ModelLoaded, ModelProbed, ModelShadow, ModelRamp, ModelChampion, ModelRetained, ModelDrained, ModelUnloaded,
	},
}

// jobMoves are the states that a command about a job may find it in.
var jobMoves = map[Type][]JobState{
	JobStarted:  {JobQueued, JobRunning}, // running: its runner has died
	JobFinished: {JobRunning},
	// queued: it cannot even start. succeeded: what it left cannot be made a version, see mayMoveJob.
	JobFailed:    {JobQueued, JobRunning, JobSucceeded},
	JobCancelled: {JobQueued, JobRunning},
	JobRetried:   {JobBroken},
}

// testable are the states in which a version may become the treatment of an experiment.
var testable = []ModelState{ModelProbed, ModelShadow, ModelRamp, ModelRetained}

// servedStates are those that a version comes to only after its probe; by them what an old log holds is known as proved.
var servedStates = []ModelState{ModelProbed, ModelShadow, ModelRamp, ModelChampion, ModelRetained, ModelDrained, ModelUnloaded}

func (s *State) mayMoveJob(j *JobStatus, typ Type) bool {
	if !s.strict() {
		return j.State != JobSucceeded && j.State != JobBroken
	}
	if j.State == JobSucceeded { // while nothing has been made of it
		for _, m := range s.Models {
			if m.Job == j.ID {
				return false
			}
		}
	}
	return slices.Contains(jobMoves[typ], j.State)
}
