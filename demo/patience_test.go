package demo

import (
	"fmt"
	"testing"
	"time"
)

// On a machine at a load of 50 training takes hours, and goes on all the while.
func TestPatienceEndsWhereTrainingStandsStill(t *testing.T) {
	start := time.Unix(0, 0)
	s := stillness{limit: 10 * time.Minute, since: start}
	for minute := range 300 {
		if s.over(start.Add(time.Duration(minute)*time.Minute), fmt.Sprintf("rounds  step %d", minute/9)) {
			t.Fatalf("given up after %d minutes of progress", minute)
		}
	}
	last := start.Add(297 * time.Minute) // the note's last change
	if s.over(last.Add(9*time.Minute), "rounds  step 33") || !s.over(last.Add(10*time.Minute), "rounds  step 33") {
		t.Error("standing still for ten minutes is not told from less")
	}
}
