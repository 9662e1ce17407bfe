package player

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// commandID is one of many.
func commandID(n int) string { return fmt.Sprintf("cmd_%026d", n) }

// replyTo is what the display replies to a command, and would send next.
func (d *Display) replyTo(t *testing.T, payload string) reply {
	t.Helper()
	d.received("d/"+deviceID+"/down/commands", []byte(payload))
	r, ok := d.nextReply()
	require.True(t, ok, "no reply to %s", payload)
	_, more := d.nextReply()
	require.False(t, more, "more than one reply")
	return r
}

func takedownOf(n int, creative string, version int64) string {
	return fmt.Sprintf(`{"command_id":%q,"kind":"TAKEDOWN","creative_id":%q,"playlist_version":%d}`, commandID(n), creative, version)
}

// shows waits until the display has shown these creatives several times, and no
// others.
func (w *watcher) shows(t *testing.T, want ...string) {
	t.Helper()
	w.mu.Lock()
	before, times := len(w.shown), 4*len(want)
	w.mu.Unlock()
	require.Eventually(t, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.shown) < before+times {
			return false
		}
		seen := make(map[string]bool)
		for _, creative := range w.shown[len(w.shown)-times:] {
			seen[creative] = true
		}
		for _, creative := range want {
			if !seen[creative] {
				return false
			}
		}
		return len(seen) == len(want)
	}, 10*time.Second, 5*time.Millisecond, "it does not show %v alone", want)
}

// TestTakedown: what is taken down is shown no more, from this moment, over a
// restart, and until a newer playlist is played.
func TestTakedown(t *testing.T) {
	item := contents(t)
	dir := t.TempDir()
	red, blue, long := item("red", 20*time.Millisecond), item("blue", 20*time.Millisecond), item("long", time.Hour)
	t.Run("Shown", func(t *testing.T) {
		d, w := alone(t, dir, time.Now, nil)
		d.want(playlistOf(3, red, blue, long))
		require.Eventually(t, func() bool {
			now := d.Status()
			return now.Item != nil && now.Item.CreativeID == "long" && time.Until(now.Until) < time.Hour-10*time.Millisecond
		}, 10*time.Second, time.Millisecond)
		began := time.Now()
		require.Equal(t, reply{CommandID: commandID(1), Result: "DONE"}, d.replyTo(t, takedownOf(1, "long", 3)))
		require.Eventually(t, func() bool {
			_, played, _ := w.seen()
			return slices.ContainsFunc(played, func(p Play) bool { return p.CreativeID == "long" && p.DurationMS < time.Minute.Milliseconds() })
		}, 10*time.Second, time.Millisecond, "what was cut is no play as long as it was shown")
		require.Less(t, time.Since(began), 2*time.Second)
		w.shows(t, "red", "blue")
		// One of a playlist before says nothing of this one, and one of a playlist that
		// is on its way does.
		require.Equal(t, "DONE", d.replyTo(t, takedownOf(2, "red", 2)).Result)
		w.shows(t, "red", "blue")
		require.Equal(t, "DONE", d.replyTo(t, takedownOf(3, "blue", 4)).Result)
		w.shows(t, "red")
		require.Equal(t, "DONE", d.replyTo(t, takedownOf(3, "blue", 4)).Result)
	})
	t.Run("Restarted", func(t *testing.T) {
		d, w := alone(t, dir, time.Now, nil)
		w.shows(t, "red")
		require.Equal(t, "DONE", d.replyTo(t, takedownOf(4, "red", 3)).Result)
		require.Eventually(t, func() bool { return d.Status().Item == nil }, 10*time.Second, time.Millisecond, "all is taken down")
		d.want(playlistOf(4, red, blue))
		w.shows(t, "red")
		d.want(playlistOf(5, red, blue))
		w.shows(t, "red", "blue")
		require.Eventually(t, func() bool {
			text, err := os.ReadFile(d.takedownsPath)
			return err == nil && string(text) == "{}"
		}, 10*time.Second, time.Millisecond, "what is over is kept")
	})
	t.Run("Broken", func(t *testing.T) {
		require.NoError(t, os.WriteFile(dir+"/"+deviceID+"/takedowns.json", []byte("{"), 0o600))
		d, w := alone(t, dir, time.Now, nil)
		w.waitForSaid(t, "reading what is taken down")
		w.shows(t, "red", "blue")
		require.Equal(t, "DONE", d.replyTo(t, takedownOf(5, "red", 5)).Result)
		w.shows(t, "blue")
	})
}

// TestCommands: each is done once, and replied to each time that it comes.
func TestCommands(t *testing.T) {
	d, w := alone(t, t.TempDir(), time.Now, nil)
	identify := `{"command_id":"` + commandID(1) + `","kind":"IDENTIFY","duration_ms":60000}`
	require.Equal(t, reply{CommandID: commandID(1), Result: "DONE"}, d.replyTo(t, identify))
	until := d.Status().Identify
	require.WithinDuration(t, time.Now().Add(time.Minute), until, 10*time.Second)
	require.Equal(t, reply{CommandID: commandID(1), Result: "DONE"}, d.replyTo(t, identify))
	require.Equal(t, until, d.Status().Identify, "it is done twice")
	_, _, said := w.seen()
	require.Equal(t, 1, strings.Count(said, "identifies for 1m0s"))

	refresh := `{"command_id":"` + commandID(2) + `","kind":"REFRESH"}`
	require.Equal(t, reply{CommandID: commandID(2), Result: "DONE", refresh: true}, d.replyTo(t, refresh))
	require.Equal(t, reply{CommandID: commandID(2), Result: "DONE"}, d.replyTo(t, refresh), "it asks twice")
	for name, c := range map[string]struct{ payload, result, detail string }{
		"Screenshot":       {`"kind":"SCREENSHOT"`, "DECLINED", "a player on a terminal has no picture to send"},
		"Unknown":          {`"kind":"EXPLODE"`, "DECLINED", `this player does not know the command "EXPLODE"`},
		"NoKind":           {`"x":1`, "DECLINED", `this player does not know the command ""`},
		"NoCreative":       {`"kind":"TAKEDOWN"`, "FAILED", `the creative id "" has`},
		"Creative":         {`"kind":"TAKEDOWN","creative_id":"\u001b[2J"`, "FAILED", `has other characters than`},
		"LongKind":         {`"kind":"` + strings.Repeat("x", 60000) + `"`, "DECLINED", "this player does not know"},
		"DurationNegative": {`"kind":"IDENTIFY","duration_ms":-1`, "DONE", ""},
		"DurationLong":     {`"kind":"IDENTIFY","duration_ms":9223372036854775807`, "DONE", ""},
	} {
		t.Run(name, func(t *testing.T) {
			id := commandID(100 + len(name))
			d.mu.Lock()
			delete(d.answered, id)
			d.mu.Unlock()
			r := d.replyTo(t, `{"command_id":"`+id+`",`+c.payload+`}`)
			require.Equal(t, c.result, r.Result)
			require.Contains(t, r.Detail, c.detail)
			require.LessOrEqual(t, len(r.Detail), maxDetail)
			require.Less(t, time.Until(d.Status().Identify), longestIdentify+time.Second)
		})
	}
	for _, payload := range []string{"", "{", "[]", `{"kind":"IDENTIFY"}`, `{"command_id":"../../x","kind":"IDENTIFY"}`, `{"command_id":7}`, "\xff"} {
		d.received("d/"+deviceID+"/down/commands", []byte(payload))
		_, ok := d.nextReply()
		require.False(t, ok, payload)
	}
	w.waitForSaid(t, "a command is not understood")

	t.Run("Bounded", func(t *testing.T) {
		for n := range 5 * maxAnswered {
			d.received("d/"+deviceID+"/down/commands", []byte(takedownOf(1000+n, fmt.Sprint("c", n), 1)))
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		require.Len(t, d.replies, maxAnswered)
		require.Len(t, d.answered, maxAnswered)
		require.Len(t, d.answeredIDs, maxAnswered)
		require.Equal(t, commandID(1000+5*maxAnswered-1), d.answeredIDs[maxAnswered-1])
	})
	t.Run("TooManyTakedowns", func(t *testing.T) {
		d.mu.Lock()
		d.replies = nil
		for n := range maxTakedowns {
			d.takedowns[fmt.Sprint("c", n)] = 1
		}
		d.mu.Unlock()
		r := d.replyTo(t, takedownOf(5000, "another", 1))
		require.Equal(t, "FAILED", r.Result)
		require.Equal(t, "DONE", d.replyTo(t, takedownOf(5001, "c1", 2)).Result, "what is taken down already can be again")
	})
}

// TestRefresh: the next playlist is taken whatever its version, once.
func TestRefresh(t *testing.T) {
	item := contents(t)
	d, w := alone(t, t.TempDir(), time.Now, nil)
	d.want(playlistOf(5, item("red", 20*time.Millisecond)))
	w.shows(t, "red")
	d.want(playlistOf(4, item("blue", 20*time.Millisecond)))
	w.shows(t, "red")
	asked := func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.refreshing = true
	}
	asked()
	d.want(playlistOf(4, item("blue", 20*time.Millisecond)))
	w.shows(t, "blue")
	require.Eventually(t, func() bool {
		kept, err := readPlaylist(d.playlistPath, deviceID)
		return err == nil && kept.Items[0].CreativeID == "blue"
	}, 10*time.Second, time.Millisecond, "it is not kept")
	asked()
	d.want(playlistOf(2, item("green", 20*time.Millisecond)))
	w.shows(t, "green")
	d.want(playlistOf(1, item("red", 20*time.Millisecond)))
	w.shows(t, "green")
}
