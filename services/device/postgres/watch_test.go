package postgres

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/services/device"
)

// What one instance tells of plays another reads as it was, and no note is longer
// than Postgres takes.
func TestPlayNotes(t *testing.T) {
	const organisation = "org_01ARZ3NDEKTSV4RRFFQ69G5FAV"
	at := time.Now().UTC().Truncate(time.Millisecond)
	for _, count := range []int{0, 1, 2, 5000} {
		var plays []device.Play
		for n := range count {
			plays = append(plays, device.Play{
				DeviceID: fmt.Sprintf("dev_%026d", n/7), ID: ulid.MustNew(ulid.Timestamp(at), ulid.DefaultEntropy()).String(),
				CreativeID: strings.Repeat("c", 1+n%64), Start: at, Duration: time.Duration(1+n) * time.Millisecond, Counted: n%3 == 0,
			})
		}
		var read []device.Play
		notes := playNotes(organisation, plays)
		for _, note := range notes {
			require.LessOrEqual(t, len(note), maxNote)
			change, ok := changeOf(note)
			require.True(t, ok)
			require.Equal(t, device.PlaysStored, change.Kind)
			require.Equal(t, organisation, change.OrganisationID)
			read = append(read, change.Plays...)
		}
		require.Equal(t, plays, read)
		require.LessOrEqual(t, len(notes), 1+count/60, "notes are not filled")
	}
	for _, word := range []string{"", "x,y", "a,b,c,d", "01ARZ3NDEKTSV4RRFFQ69G5FAV,c,x,1", "a,b,c,d,e"} {
		change, ok := changeOf("plays " + organisation + " dev_1 " + word)
		require.True(t, ok)
		require.Empty(t, change.Plays, word)
	}
}
