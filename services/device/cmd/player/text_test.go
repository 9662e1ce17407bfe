package main

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/player"
)

// TestBookedText: a text that is booked is to be read on the terminal, until it is
// taken down.
func TestBookedText(t *testing.T) {
	w := newWorld(t)
	w.serve(t)
	id, code := w.create(t, "1")
	w.put(t, id, w.item("red", 200*time.Millisecond, false))
	p := start(t, "--dir", t.TempDir(), "--server", w.address, "--gateway", w.gateway.URL, "--claim-code", code)
	p.waitFor(t, "shows red")

	content := []byte(`{"text":"Spring sale\nuntil \u001b[31mSunday","color":"#FFFFFF","background":"#A00000","size_percent":10,"alignment":"center","bold":true}`)
	sum := sha256.Sum256(content)
	hash := hex.EncodeToString(sum[:])
	w.mu.Lock()
	w.contents["/v1/media/"+hash] = content
	w.mu.Unlock()
	today := airtime.DateOf(time.Now(), time.UTC)
	line := device.BookedLine{
		ID: "lin_01ARZ3NDEKTSV4RRFFQ69G5FAV", DeviceID: id, Revision: 1, Flight: airtime.Flight{First: today.Add(-1), Last: today.Add(1)}, Slots: []int{0},
		Start: time.Now().Add(-time.Hour), End: time.Now().Add(24 * time.Hour),
	}
	line.Showing = &device.Item{CreativeID: line.ID + "-1", URL: "/v1/media/" + hash, SHA256: hash, MediaType: player.TextType, DurationMS: 10000}
	began := time.Now()
	changed, err := w.PutLines(t.Context(), id, []device.BookedLine{line})
	require.NoError(t, err)
	require.Equal(t, 1, changed)
	p.waitFor(t, "shows "+line.ID+"-1 for 10s\n    Spring sale\n    until [31mSunday\n")
	t.Logf("the text was to be read %s after it was booked", time.Since(began))
	require.Less(t, time.Since(began), 2*time.Second)

	began = time.Now()
	line.Revision, line.Showing, line.TakenDown = 2, nil, []string{line.ID + "-1"}
	_, err = w.PutLines(t.Context(), id, []device.BookedLine{line})
	require.NoError(t, err)
	p.waitFor(t, "played "+line.ID+"-1 for ")
	t.Logf("it was off %s after it was taken down", time.Since(began))
	require.Less(t, time.Since(began), 2*time.Second)
	require.Eventually(t, func() bool { return slices.Contains(slices.Collect(maps.Values(w.stored(t, id))), line.ID+"-1") }, patience, 10*time.Millisecond, "its play is not stored")
	require.Zero(t, p.signal(t, os.Interrupt))
	require.Zero(t, w.rejected(t))
}
