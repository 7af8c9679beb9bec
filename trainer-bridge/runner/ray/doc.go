// Package ray runs tasks by the Jobs API of Ray (REST, /api/jobs/).
//
// What a client has to know, seen at Ray 2.60 (fake_test.go has its answers): a submission under an id that is taken is answered with
// 500 and a traceback; a stop of a job that waits for resources answers "stopped" and changes nothing; a stop kills after three
// seconds unless the job's environment says otherwise.
package ray
