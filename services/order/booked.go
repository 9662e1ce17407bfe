package order

import (
	"strconv"
	"time"

	"github.com/marquee-ads/marquee/platform/airtime"
)

// BookedLine is what a display has to know of a line.
type BookedLine struct {
	LineID   string
	DeviceID string
	// Revision grows with each change of the line.
	Revision int64
	Flight   airtime.Flight
	Dayparts []airtime.Opening // all of the flight without any
	// Slots are positions of the loop, from 0, ascending.
	Slots []int
	// Start and End bound when it is on, whatever the flight says.
	Start, End time.Time
	// Showing is what is shown; nil leaves the slots to the display itself.
	Showing *Showing
	// Removed says that the line is not booked any more.
	Removed bool
	// TakenDown are ids of showings that are not shown for a moment longer.
	TakenDown []string
}

// Showing is what is shown in a line.
type Showing struct {
	// ID names it in plays, see ShowingID.
	ID string
	// URL is the path at every gateway.
	URL string
	// SHA256 is that of what is there, 64 hex digits.
	SHA256    string
	MediaType string
	// Duration is how long it is shown.
	Duration time.Duration
}

// mediaPath is where media are at every gateway.
const mediaPath = "/v1/media/"

// ShowingID names the showing of a line with this number.
func ShowingID(lineID string, number int) string { return lineID + "-" + strconv.Itoa(number) }

// NewShowing is the showing of a line with this number. media is how long what is
// shown is by itself, 0 when it has no length: it never takes longer than the slot.
func NewShowing(lineID string, number int, sha256, mediaType string, media, slot time.Duration) *Showing {
	if media <= 0 || media > slot {
		media = slot
	}
	return &Showing{ID: ShowingID(lineID, number), URL: mediaPath + sha256, SHA256: sha256, MediaType: mediaType, Duration: media}
}

// Shown is a version of a creative; the zero value is none.
type Shown struct {
	CreativeID string
	Version    int
}

// Told is what a display was last told that a line shows.
type Told struct {
	Shown Shown
	// Number is that of the newest showing, 0 before the first. It stays when
	// nothing is shown any more.
	Number int
	// TakenDown is up to which number showings are taken down.
	TakenDown int
}

// Next is what to tell when due is to be shown from now on. allowed says whether
// what was shown until now may be: when not, it is taken down; else its turn may end.
func (t Told) Next(due Shown, allowed bool) Told {
	next := t
	if t.Shown != (Shown{}) && !allowed {
		next.TakenDown = t.Number
	}
	if due != t.Shown {
		next.Shown = due
		if due != (Shown{}) {
			next.Number++
		}
	}
	return next
}

// takenDownTold is how many of the last showings a display is told of as taken down.
// One that was on before them cannot be on any more: each new one took approval, or
// a call, and a slot lasts seconds.
const takenDownTold = 16

// TakenDownIDs are the ids of the showings up to this number, the newest last.
func TakenDownIDs(lineID string, number int) []string {
	var ids []string
	for n := max(1, number-takenDownTold+1); n <= number; n++ {
		ids = append(ids, ShowingID(lineID, n))
	}
	return ids
}
