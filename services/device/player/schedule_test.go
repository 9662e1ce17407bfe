package player

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// hands are a clock on the wall that a test moves.
type hands struct{ offset atomic.Int64 }

func (h *hands) now() time.Time { return time.Now().Add(time.Duration(h.offset.Load())) }

func (h *hands) set(t time.Time) { h.offset.Store(int64(time.Until(t))) }

// opens is the first moment of the schedule of these tests: on each of two days from
// 8 to 20 h, from 18 h on with the first item alone.
var opens = time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)

func hour(n int) time.Time { return opens.Add(time.Duration(n-8) * time.Hour) }

// scheduled is a playlist with that schedule.
func scheduled(p Playlist) Playlist {
	p.Schedule = []Period{}
	for day := range 2 {
		from := opens.AddDate(0, 0, day)
		p.Schedule = append(p.Schedule,
			Period{From: from, Until: from.Add(10 * time.Hour), Loop: []int{0, 1}},
			Period{From: from.Add(10 * time.Hour), Until: from.Add(12 * time.Hour), Loop: []int{0}})
	}
	return p
}

// isOff waits until the display is off until a time, zero for ever.
func isOff(t *testing.T, d *Display, until time.Time) {
	t.Helper()
	require.Eventually(t, func() bool {
		now := d.Status()
		return now.Item == nil && now.Off && now.Until.Equal(until)
	}, 10*time.Second, time.Millisecond, "it is not off until %s, but %+v", until, d.Status())
}

// TestSchedule moves the clock, and restarts without a network.
func TestSchedule(t *testing.T) {
	item := contents(t)
	dir := t.TempDir()
	clock := &hands{}
	red, blue, long := item("red", 20*time.Millisecond), item("blue", 20*time.Millisecond), item("long", time.Hour)
	p := scheduled(playlistOf(1, red, blue))
	t.Run("Hours", func(t *testing.T) {
		clock.set(hour(3))
		d, w := alone(t, dir, clock.now, nil)
		d.want(p)
		isOff(t, d, hour(8))
		clock.set(hour(9))
		w.shows(t, "red", "blue")
		clock.set(hour(19))
		w.shows(t, "red")
		clock.set(hour(21))
		isOff(t, d, hour(24+8))
		require.Zero(t, d.Status().Held)
		clock.set(hour(24 + 8))
		w.shows(t, "red", "blue")
		// It may go back.
		clock.set(hour(3))
		isOff(t, d, hour(8))
		clock.set(hour(24 + 20))
		isOff(t, d, time.Time{})
		// Before it is set, nobody knows.
		clock.set(time.Unix(0, 0))
		w.shows(t, "red", "blue")
	})
	t.Run("RestartedInside", func(t *testing.T) {
		clock.set(hour(9))
		_, w := alone(t, dir, clock.now, nil)
		w.shows(t, "red", "blue")
	})
	t.Run("RestartedOutside", func(t *testing.T) {
		clock.set(hour(21))
		d, w := alone(t, dir, clock.now, nil)
		isOff(t, d, hour(24+8))
		shown, _, _ := w.seen()
		require.Empty(t, shown)
	})
	t.Run("RestartedAfterItsEnd", func(t *testing.T) {
		clock.set(hour(100))
		d, w := alone(t, dir, clock.now, nil)
		isOff(t, d, time.Time{})
		// A later schedule of the same version is followed and kept, one of an older
		// version is not.
		older := playlistOf(0, red, blue)
		older.Schedule = []Period{{From: hour(99), Until: hour(101), Loop: []int{1}}}
		d.want(older)
		later := p
		later.Schedule = append(later.Schedule[:len(later.Schedule):len(later.Schedule)], Period{From: hour(99), Until: hour(130), Loop: []int{1}})
		d.want(later)
		w.shows(t, "blue")
		require.Eventually(t, func() bool {
			kept, err := readPlaylist(d.playlistPath, deviceID)
			return err == nil && kept.equal(later)
		}, 10*time.Second, time.Millisecond, "it is not kept")
		// A shorter one, too: the hours have changed.
		d.want(p)
		isOff(t, d, time.Time{})
	})
	t.Run("CutAtTheEnd", func(t *testing.T) {
		clock.set(hour(12))
		d, w := alone(t, t.TempDir(), clock.now, nil)
		d.want(scheduled(playlistOf(1, long, red)))
		require.Eventually(t, func() bool { return d.Status().Item != nil }, 10*time.Second, time.Millisecond)
		clock.set(hour(20).Add(-300 * time.Millisecond))
		began := time.Now()
		isOff(t, d, hour(24+8))
		require.Less(t, time.Since(began), 5*time.Second)
		require.Eventually(t, func() bool {
			_, played, _ := w.seen()
			return len(played) == 1 && played[0].CreativeID == "long" && played[0].DurationMS < time.Minute.Milliseconds()
		}, 10*time.Second, time.Millisecond, "what was cut is no play as long as it was shown")
	})
	t.Run("ClockNotSet", func(t *testing.T) {
		clock.set(time.Unix(0, 0))
		d, w := alone(t, t.TempDir(), clock.now, nil)
		booked := playlistOf(1, red, blue)
		booked.Schedule = []Period{{From: hour(8), Until: hour(9), Loop: []int{0}}, {From: hour(9), Until: hour(10), Loop: []int{0, 1}}}
		d.want(booked)
		w.shows(t, "red")
		closed := playlistOf(2, red, blue)
		closed.Schedule = []Period{}
		d.want(closed)
		w.shows(t, "red", "blue")
	})
	t.Run("Never", func(t *testing.T) {
		d, w := alone(t, t.TempDir(), time.Now, nil)
		never := playlistOf(1, red)
		never.Schedule = []Period{}
		d.want(never)
		isOff(t, d, time.Time{})
		d.want(playlistOf(1, red)) // of an older service: always
		w.shows(t, "red")
	})
}

// TestScheduleIsKept: none is another than an empty one.
func TestScheduleIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "playlist.json")
	item := itemAt("http://a/", picture)
	for name, schedule := range map[string][]Period{"None": nil, "Empty": {}, "Some": {{From: hour(8), Until: hour(9), Loop: []int{0}}, {From: hour(9), Until: hour(10), Loop: []int{}}}} {
		t.Run(name, func(t *testing.T) {
			p := playlistOf(1, item)
			p.Schedule = schedule
			require.NoError(t, p.keep(path))
			read, err := readPlaylist(path, deviceID)
			require.NoError(t, err)
			require.True(t, read.equal(p), "%+v", read)
			require.Equal(t, schedule == nil, read.Schedule == nil)
		})
	}
	// What a player of before kept.
	text, err := json.Marshal(map[string]any{"device_id": deviceID, "version": 1, "items": []Item{item}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, text, 0o600))
	read, err := readPlaylist(path, deviceID)
	require.NoError(t, err)
	require.Equal(t, []Item{item}, read.at(hour(3)).items)
}

func TestScheduleRefused(t *testing.T) {
	item, err := json.Marshal(itemAt("http://a/", picture))
	require.NoError(t, err)
	period := func(from, until int, loop string) string {
		return fmt.Sprintf(`{"from":%q,"until":%q,"loop":%s}`, hour(from).Format(time.RFC3339), hour(until).Format(time.RFC3339), loop)
	}
	var many []string
	for n := range maxPeriods + 1 {
		many = append(many, period(n, n+1, "[]"))
	}
	for name, c := range map[string]struct{ schedule, problem string }{
		"OK":           {"[" + period(8, 9, "[0]") + "," + period(9, 10, "[0,0]") + "]", ""},
		"OKUnknown":    {`[{"from":"2026-11-21T08:00:00Z","until":"2026-11-21T09:00:00Z","loop":[],"colour":"red"}]`, ""},
		"ErrBackwards": {"[" + period(9, 8, "[0]") + "]", "it is from 2026-11-21T09:00:00Z until 2026-11-21T08:00:00Z"},
		"ErrEmpty":     {"[" + period(9, 9, "[0]") + "]", "it is from"},
		"ErrOverlap":   {"[" + period(8, 10, "[0]") + "," + period(9, 11, "[0]") + "]", "period 2 of its schedule: it begins before the end of the one before it"},
		"ErrItem":      {"[" + period(8, 9, "[0,1]") + "]", "its loop has the item 1 of 1, counted from 0"},
		"ErrNegative":  {"[" + period(8, 9, "[-1]") + "]", "its loop has the item -1"},
		"ErrNoTime":    {`[{"from":"today","until":"tomorrow","loop":[0]}]`, "reading a playlist"},
		"ErrLongLoop":  {"[" + period(8, 9, "[0"+strings.Repeat(",0", maxLoop)+"]") + "]", "its loop has 3601 items"},
		"ErrTooMany":   {"[" + strings.Join(many, ",") + "]", "a schedule of 201 periods"},
		"ErrNoList":    {`"always"`, "reading a playlist"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parsePlaylist(fmt.Appendf(nil, `{"device_id":%q,"version":1,"items":[%s],"schedule":%s}`, deviceID, item, c.schedule), deviceID)
			if c.problem == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.problem)
		})
	}
}

// TestSameVersion: what is booked comes into the time of the schedule, and goes.
func TestSameVersion(t *testing.T) {
	item := contents(t)
	d, w := alone(t, t.TempDir(), time.Now, nil)
	d.want(playlistOf(5, item("red", 20*time.Millisecond)))
	w.shows(t, "red")
	began := time.Now()
	d.want(playlistOf(5, item("red", 20*time.Millisecond), item("blue", time.Minute)))
	require.Eventually(t, func() bool { i := d.Status().Item; return i != nil && i.CreativeID == "blue" }, 10*time.Second, time.Millisecond)
	d.want(playlistOf(5, item("green", 20*time.Millisecond)))
	w.shows(t, "green")
	require.Less(t, time.Since(began), 30*time.Second, "what is in no playlist any more is shown to its end")
}

// TestOtherVersionOfTheSame: a new version with the same loop goes on where it is.
func TestOtherVersionOfTheSame(t *testing.T) {
	item := contents(t)
	d, w := alone(t, t.TempDir(), time.Now, nil)
	loop := []Item{item("red", 100*time.Millisecond), item("green", 100*time.Millisecond), item("blue", 100*time.Millisecond)}
	version := int64(1)
	d.want(playlistOf(version, loop...))
	require.Eventually(t, func() bool {
		version++
		d.want(playlistOf(version, loop...))
		shown, _, _ := w.seen()
		return len(shown) > 8
	}, 20*time.Second, 40*time.Millisecond, "it does not go on")
	shown, _, _ := w.seen()
	for n, creative := range shown {
		require.Equal(t, loop[n%3].CreativeID, creative, "%d of %v", n, shown)
	}
}

// TestLaterItemsComeLater: what is for later, and does not come, is in nobody's way.
func TestLaterItemsComeLater(t *testing.T) {
	var missing atomic.Bool
	missing.Store(true)
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/later" && missing.Load() {
			http.NotFound(out, req)
			return
		}
		_, _ = out.Write([]byte(req.URL.Path))
	}))
	t.Cleanup(server.Close)
	item := func(name string) Item {
		i := itemAt(server.URL+"/"+name, []byte("/"+name))
		i.CreativeID, i.DurationMS = name, 20
		return i
	}
	clock := &hands{}
	clock.set(hour(8))
	dir := t.TempDir()
	d, w := alone(t, dir, clock.now, nil)
	p := playlistOf(2, item("later"), item("red"), item("green"))
	p.Schedule = []Period{{From: hour(7), Until: hour(9), Loop: []int{1}}, {From: hour(9), Until: hour(11), Loop: []int{0, 2}}}
	d.want(playlistOf(1, item("blue")))
	w.shows(t, "blue")
	d.want(p)
	w.shows(t, "red")
	w.waitForSaid(t, "version 2 of the playlist waits")
	kept, err := readPlaylist(d.playlistPath, deviceID)
	require.NoError(t, err)
	require.EqualValues(t, 1, kept.Version, "a restart would find what is not there")
	clock.set(hour(10))
	isOn := func(creative string) func() bool {
		return func() bool { i := d.Status().Item; return i != nil && i.CreativeID == creative }
	}
	require.Never(t, isOn("later"), 300*time.Millisecond, 5*time.Millisecond)
	missing.Store(false)
	require.Eventually(t, isOn("later"), 20*time.Second, time.Millisecond)
	w.shows(t, "later", "green")
}
