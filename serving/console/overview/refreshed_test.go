package overview

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"ctrloop/serving/console"
)

func TestRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r refreshed[int]
		var mu sync.Mutex
		loads, takes, fail := 0, time.Second, error(nil)
		set := func(d time.Duration, err error) {
			mu.Lock()
			defer mu.Unlock()
			takes, fail = d, err
		}
		load := func(context.Context) (int, error) {
			mu.Lock()
			d := takes
			mu.Unlock()
			time.Sleep(d)
			mu.Lock()
			defer mu.Unlock()
			loads++
			return loads, fail
		}
		get := func(key string) (int, error) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			return r.get(ctx, key, 5*time.Second, 20, load)
		}
		expect := func(what, key string, want int, wantErr error) {
			t.Helper()
			if v, err := get(key); v != want || !errors.Is(err, wantErr) {
				t.Errorf("%s: %d, %v; want %d, %v", what, v, err, want, wantErr)
			}
		}
		expect("the first load is waited for", "a", 1, nil)
		time.Sleep(19 * time.Second)
		expect("it rests 20 times as long as it took", "a", 1, nil)
		time.Sleep(2 * time.Second)
		expect("when it is due, the old value stays meanwhile", "a", 1, nil)
		expect("and one load at a time", "a", 1, nil)
		time.Sleep(2 * time.Second)
		expect("then there is the new one", "a", 2, nil)
		expect("another key does not wait for its turn", "b", 2, nil)
		time.Sleep(2 * time.Second)
		broken := errors.New("no answer")
		set(0, broken)
		expect("the key's value", "b", 3, nil)
		time.Sleep(21 * time.Second)
		_, _ = get("b")
		synctest.Wait()
		expect("a failure keeps the value and says so", "b", 3, broken)
		set(time.Second, nil)
		time.Sleep(time.Hour)
		expect("after a pause it is waited for", "b", 5, nil)
		set(time.Hour, nil)
		time.Sleep(time.Hour)
		expect("but not for ever", "b", 5, nil)
		time.Sleep(2 * time.Hour)
		mu.Lock()
		defer mu.Unlock()
		if loads != 6 {
			t.Errorf("%d loads, want 6", loads)
		}
	})
}

// TestOldFiguresSayThatTheyAreOld: the page is gathered anew each second, its figures are not (review N12).
func TestOldFiguresSayThatTheyAreOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r refreshed[int]
		broken := errors.New("no answer")
		var mu sync.Mutex
		var fail error
		get := func() {
			_, _ = r.get(t.Context(), "", 5*time.Second, 0, func(context.Context) (int, error) {
				mu.Lock()
				defer mu.Unlock()
				return 1, fail
			})
			synctest.Wait()
		}
		if got := r.stale(time.Now(), "x"); got != nil {
			t.Errorf("before anybody asked: %v", got)
		}
		get()
		time.Sleep(5*time.Second + tooOld)
		if got := r.stale(time.Now(), "x"); got != nil {
			t.Errorf("fresh: %v", got)
		}
		mu.Lock()
		fail = broken
		mu.Unlock()
		time.Sleep(5 * time.Minute)
		get()
		want := []console.Stale{{Part: "x", AgeSeconds: (5*time.Minute + 5*time.Second + tooOld).Seconds(), Why: "no answer"}}
		if d := cmp.Diff(want, r.stale(time.Now(), "x")); d != "" {
			t.Error(d)
		}
	})
}
