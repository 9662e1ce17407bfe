package player

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
)

const deviceID = "dev_01ARZ3NDEKTSV4RRFFQ69G5FAV"

// watcher keeps what it is told.
type watcher struct {
	mu     sync.Mutex
	shown  []string
	played []Play
	said   string
}

func (w *watcher) Shows(_ *Display, item *Item) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if item != nil {
		w.shown = append(w.shown, item.CreativeID)
	}
}

func (w *watcher) Played(_ *Display, play Play) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.played = append(w.played, play)
}

func (w *watcher) Identifies(d *Display, duration time.Duration) {
	w.Says(d, "identifies for "+duration.String())
}

func (w *watcher) Says(_ *Display, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said += text + "\n"
}

func (w *watcher) seen() ([]string, []Play, string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.shown...), append([]Play(nil), w.played...), w.said
}

func (w *watcher) waitForSaid(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool {
		_, _, said := w.seen()
		return strings.Contains(said, text)
	}, 10*time.Second, 5*time.Millisecond, "it never says %q", text)
}

// alone is a display without a network that plays until the test ends.
func alone(t *testing.T, dir string, wall func() time.Time, change func(d *Display)) (*Display, *watcher) {
	t.Helper()
	w := &watcher{}
	p, err := New(Config{
		Dir: dir, Servers: func() ([]string, error) { return []string{"127.0.0.1:1"}, nil }, Devices: []Credentials{{deviceID, "mqd_x"}}, Observer: w, Wall: wall, JournalLimit: math.MaxInt64,
	})
	require.NoError(t, err)
	d := p.Displays()[0]
	if change != nil {
		change(d)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	return d, w
}

// contents serves each path as its own content.
func contents(t *testing.T) func(path string, duration time.Duration) Item {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, req *http.Request) {
		_, _ = out.Write([]byte(req.URL.Path))
	}))
	t.Cleanup(server.Close)
	return func(name string, duration time.Duration) Item {
		item := itemAt(server.URL+"/"+name, []byte("/"+name))
		item.CreativeID, item.DurationMS = name, duration.Milliseconds()
		return item
	}
}

func playlistOf(version int64, items ...Item) Playlist {
	return Playlist{DeviceID: deviceID, Version: version, Items: items}
}

// TestClockNotSet: without a clock it plays, and dates the plays when there is one.
func TestClockNotSet(t *testing.T) {
	item := contents(t)
	var offset atomic.Int64
	offset.Store(-int64(time.Since(time.Unix(0, 0))))
	wall := func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
	began := time.Now()
	d, w := alone(t, t.TempDir(), wall, nil)
	d.want(playlistOf(1, item("red", 50*time.Millisecond)))
	require.Eventually(t, func() bool { return d.Status().Held >= 3 }, 10*time.Second, 5*time.Millisecond)
	_, played, said := w.seen()
	require.Empty(t, played)
	require.Contains(t, said, "the clock is not set: it shows 1970-01-01")
	require.Zero(t, d.journal.Unsent())
	offset.Store(0)
	w.waitForSaid(t, "are written down")
	_, played, _ = w.seen()
	require.GreaterOrEqual(t, len(played), 3)
	last := began
	for _, p := range played {
		id, err := ulid.ParseStrict(p.ID)
		require.NoError(t, err)
		require.False(t, id.Timestamp().Before(last.Truncate(time.Millisecond)), "plays are out of order")
		require.WithinRange(t, id.Timestamp(), began.Add(-time.Millisecond), time.Now())
		require.InDelta(t, 50, p.DurationMS, 40)
		last = id.Timestamp()
	}
}

// TestClockJumps: how long an item is shown, and for how long it says so, is not a
// matter of what the clock on the wall says.
func TestClockJumps(t *testing.T) {
	item := contents(t)
	var jumps atomic.Int64
	wall := func() time.Time {
		return time.Now().Add(time.Duration(jumps.Add(1)%2) * 24 * time.Hour)
	}
	d, w := alone(t, t.TempDir(), wall, nil)
	d.want(playlistOf(1, item("red", 30*time.Millisecond)))
	require.Eventually(t, func() bool { return d.Status().Plays >= 6 }, 10*time.Second, 5*time.Millisecond)
	_, played, _ := w.seen()
	for _, p := range played {
		require.GreaterOrEqual(t, p.DurationMS, int64(28)) // and what it began late
		require.Less(t, p.DurationMS, int64(2000))
	}
}

// TestDiskFull: it plays on while the disk is full, and writes the plays down when it
// is not.
func TestDiskFull(t *testing.T) {
	item := contents(t)
	dir := t.TempDir()
	var mu sync.Mutex
	room := 0
	d, w := alone(t, dir, time.Now, func(d *Display) {
		path := filepath.Join(t.TempDir(), "plays")
		journal, _, err := openJournal(path, math.MaxInt64, func(path string, flag int) (file, error) {
			return onGuardedDisk(path, flag, &mu, &room)
		})
		require.NoError(t, err)
		require.NoError(t, d.journal.Close())
		d.journal = journal
	})
	d.want(playlistOf(1, item("red", 20*time.Millisecond)))
	w.waitForSaid(t, "no space left on device")
	require.Eventually(t, func() bool { return d.Status().Held >= 5 }, 10*time.Second, 5*time.Millisecond)
	require.Zero(t, d.journal.Unsent())
	mu.Lock()
	room = math.MaxInt
	mu.Unlock()
	w.waitForSaid(t, "are written down")
	_, played, _ := w.seen()
	require.GreaterOrEqual(t, len(played), 5)
	found, _ := next(t, d.journal, len(played))
	require.Equal(t, played[:len(found)], found)
}

// TestPlaylists: the newest is played once all of it is there, and not before.
func TestPlaylists(t *testing.T) {
	item := contents(t)
	dir := t.TempDir()
	d, w := alone(t, dir, time.Now, nil)
	shows := func(want ...string) {
		t.Helper()
		require.Eventually(t, func() bool {
			shown, _, _ := w.seen()
			return len(shown) >= len(want) && fmt.Sprint(shown[len(shown)-len(want):]) == fmt.Sprint(want)
		}, 10*time.Second, time.Millisecond, "%v is not shown", want)
	}
	red, blue := item("red", 20*time.Millisecond), item("blue", 30*time.Millisecond)
	d.want(playlistOf(2, red, blue))
	shows("red", "blue", "red", "blue")
	d.want(playlistOf(1, red))
	shows("blue", "red", "blue")
	missing := red
	missing.CreativeID, missing.SHA256 = "missing", strings.Repeat("0", 64)
	d.want(playlistOf(3, missing))
	w.waitForSaid(t, "version 3 of the playlist waits: fetching")
	shows("red", "blue", "red")
	require.EqualValues(t, 2, d.Status().Playlist)
	d.want(playlistOf(4, blue))
	shows("blue", "blue", "blue")
	d.want(playlistOf(5))
	require.Eventually(t, func() bool { return d.Status().Item == nil }, 10*time.Second, time.Millisecond)
	require.Eventually(t, func() bool {
		kept, err := readPlaylist(d.playlistPath, deviceID)
		return err == nil && kept.Version == 5
	}, 10*time.Second, time.Millisecond, "it is not kept")

	for name, text := range map[string]string{
		"ErrNotJSON":  `{`,
		"ErrOthers":   `{"device_id":"dev_x","version":9,"items":[]}`,
		"ErrVersion":  `{"device_id":"` + deviceID + `","version":0,"items":[]}`,
		"ErrHash":     `{"device_id":"` + deviceID + `","version":9,"items":[{"creative_id":"a","url":"http://a/","sha256":"../../../etc/passwd","duration_ms":1}]}`,
		"ErrCreative": `{"device_id":"` + deviceID + `","version":9,"items":[{"creative_id":"\u001b[2J","url":"http://a/","sha256":"` + strings.Repeat("0", 64) + `","duration_ms":1}]}`,
		"ErrURL":      `{"device_id":"` + deviceID + `","version":9,"items":[{"creative_id":"a","url":"file:///etc/passwd","sha256":"` + strings.Repeat("0", 64) + `","duration_ms":1}]}`,
		"ErrDuration": `{"device_id":"` + deviceID + `","version":9,"items":[{"creative_id":"a","url":"http://a/","sha256":"` + strings.Repeat("0", 64) + `","duration_ms":9223372036854775807}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			d.received("d/"+deviceID+"/down/playlist", []byte(text))
			w.waitForSaid(t, "a playlist is not used")
			require.EqualValues(t, 5, d.newest().Version)
			w.mu.Lock()
			w.said = ""
			w.mu.Unlock()
		})
	}
}

// TestRivalry: who was replaced comes back soon, and rests when it happens again, but
// for what attempts of its own did.
func TestRivalry(t *testing.T) {
	began := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	replaced, unanswered := lost{next: Replaced, reason: io.EOF}, lost{next: Offline, unanswered: true, reason: io.EOF}
	type event struct {
		after time.Duration // the beginning
		why   lost
		next  Connection
	}
	for name, events := range map[string][]event{
		"Once":            {{time.Hour, replaced, Offline}},
		"Twice":           {{0, replaced, Offline}, {2 * time.Second, replaced, Replaced}},
		"AfterItsRest":    {{0, replaced, Offline}, {2 * time.Second, replaced, Replaced}, {refusedPause * 3 / 2, replaced, Replaced}},
		"MuchLater":       {{0, replaced, Offline}, {rivalWithin, replaced, Offline}},
		"Otherwise":       {{0, replaced, Offline}, {time.Second, lost{next: Offline}, Offline}, {2 * time.Second, lost{next: Refused}, Refused}},
		"OwnAttempts":     {{0, unanswered, Offline}, {time.Second, replaced, Offline}, {2 * time.Second, replaced, Offline}, {3 * time.Second, replaced, Offline}},
		"OwnIsNoRival":    {{0, unanswered, Offline}, {time.Second, replaced, Offline}, {lateWithin, replaced, Offline}, {lateWithin + time.Second, replaced, Replaced}},
		"OwnAttemptEnded": {{0, replaced, Offline}, {time.Second, unanswered, Offline}, {time.Second + lateWithin, replaced, Replaced}},
	} {
		t.Run(name, func(t *testing.T) {
			var r rivalry
			for n, e := range events {
				got := r.ended(e.why, began.Add(e.after))
				require.Equal(t, e.next, got.next, "event %d", n)
				if e.next == Replaced {
					require.ErrorContains(t, got.reason, "another player has its credentials")
				}
			}
		})
	}
}

func TestBackOff(t *testing.T) {
	for attempts, seconds := range []int{1, 2, 4, 8, 16, 32, 60, 60} {
		want := time.Duration(seconds) * time.Second
		for range 100 {
			pause := backOff(attempts)
			require.GreaterOrEqual(t, pause, want/2)
			require.LessOrEqual(t, pause, want*3/2)
		}
	}
	require.LessOrEqual(t, backOff(math.MaxInt), 90*time.Second)
}

// TestEndOf: what begins a little late ends as if it had not.
func TestEndOf(t *testing.T) {
	due := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		duration, late, shown time.Duration
	}{
		"OnTime":    {10 * time.Second, 0, 10 * time.Second},
		"Late":      {10 * time.Second, 3 * time.Millisecond, 10*time.Second - 3*time.Millisecond},
		"LateMost":  {10 * time.Second, 250 * time.Millisecond, 9750 * time.Millisecond},
		"TooLate":   {10 * time.Second, 251 * time.Millisecond, 10 * time.Second},
		"LateShort": {time.Second, 40 * time.Millisecond, 960 * time.Millisecond},
		"TooShort":  {time.Second, 41 * time.Millisecond, time.Second},
		"Early":     {10 * time.Second, -time.Millisecond, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			began := due.Add(c.late)
			require.Equal(t, c.shown, endOf(Item{DurationMS: c.duration.Milliseconds()}, due, began).Sub(began))
		})
	}
	require.Equal(t, due.Add(time.Second), endOf(Item{DurationMS: 1000}, time.Time{}, due), "nothing was due")
}
