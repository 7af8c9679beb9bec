package warehouse

import "testing"

// rollUp counts what is due and fails if nothing was.
func rollUp(t testing.TB, db *DB) {
	t.Helper()
	done, err := db.RollUp(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if done.Days == 0 {
		t.Fatal("nothing was rolled up: the test would prove nothing")
	}
}
