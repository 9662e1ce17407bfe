package player

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"regexp"
	"slices"
	"time"
)

// Playlist is what a device shows, and when.
type Playlist struct {
	DeviceID string `json:"device_id"`
	// Version grows with each change of what may be shown; 0 is none.
	Version int64  `json:"version"`
	Items   []Item `json:"items"`
	// Schedule are the times in which something is shown, in order and apart from each
	// other. Without any nothing is; nil, of an older service, is always all items.
	Schedule []Period `json:"schedule"`
}

// Period is a time in which items are shown, over and over.
type Period struct {
	// From is its first moment, Until the first after it.
	From  time.Time `json:"from"`
	Until time.Time `json:"until"`
	// Loop are the places in the playlist of what is shown.
	Loop []int `json:"loop"`
}

// Item is one thing to show.
type Item struct {
	CreativeID string `json:"creative_id"`
	// URL is where the content is; one that is a path is so at every gateway.
	URL string `json:"url"`
	// SHA256 is of the content at URL, in lower-case hexadecimal digits.
	SHA256     string `json:"sha256"`
	MediaType  string `json:"media_type"`
	DurationMS int64  `json:"duration_ms"`
}

// Duration is how long it is shown.
func (i Item) Duration() time.Duration { return time.Duration(i.DurationMS) * time.Millisecond }

var (
	sha256Pattern   = regexp.MustCompile(`^[0-9a-f]{64}$`)
	creativePattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
)

const (
	longestItem = 24 * time.Hour
	// maxPeriods is more than a server sends, and maxLoop bounds the loop of each: an
	// hour of slots of a second.
	maxPeriods = 200
	maxLoop    = 3600
)

// parsePlaylist reads the playlist of a device. An error says what is wrong with it.
func parsePlaylist(text []byte, deviceID string) (Playlist, error) {
	var p Playlist
	if err := json.Unmarshal(text, &p); err != nil {
		return Playlist{}, fmt.Errorf("reading a playlist: %w", err)
	}
	if p.DeviceID != deviceID {
		return Playlist{}, fmt.Errorf("a playlist is of %q, not of %s", p.DeviceID, deviceID)
	}
	if p.Version < 1 {
		return Playlist{}, fmt.Errorf("a playlist has the version %d", p.Version)
	}
	for n, item := range p.Items {
		if err := item.check(); err != nil {
			return Playlist{}, fmt.Errorf("version %d of the playlist, item %d: %w", p.Version, n+1, err)
		}
	}
	if len(p.Schedule) > maxPeriods {
		return Playlist{}, fmt.Errorf("version %d of the playlist has a schedule of %d periods; at most %d are taken", p.Version, len(p.Schedule), maxPeriods)
	}
	for n, period := range p.Schedule {
		err := period.check(len(p.Items))
		if err == nil && n > 0 && period.From.Before(p.Schedule[n-1].Until) {
			err = errors.New("it begins before the end of the one before it")
		}
		if err != nil {
			return Playlist{}, fmt.Errorf("version %d of the playlist, period %d of its schedule: %w", p.Version, n+1, err)
		}
	}
	return p, nil
}

func (p Period) check(items int) error {
	if !p.From.Before(p.Until) {
		return fmt.Errorf("it is from %s until %s", p.From.Format(time.RFC3339), p.Until.Format(time.RFC3339))
	}
	if len(p.Loop) > maxLoop {
		return fmt.Errorf("its loop has %d items; at most %d are taken", len(p.Loop), maxLoop)
	}
	for _, place := range p.Loop {
		if place < 0 || place >= items {
			return fmt.Errorf("its loop has the item %d of %d, counted from 0", place, items)
		}
	}
	return nil
}

func (i Item) check() error {
	// Creative ids are printed on terminals, and hashes are names of files.
	if !creativePattern.MatchString(i.CreativeID) {
		return fmt.Errorf("the creative id %q has other characters than letters, digits, _ and -, or not 1 to 64", i.CreativeID)
	}
	if !sha256Pattern.MatchString(i.SHA256) {
		return fmt.Errorf("the SHA-256 %q has not 64 lower-case hexadecimal digits", i.SHA256)
	}
	if i.DurationMS < 1 || i.DurationMS > longestItem.Milliseconds() {
		return fmt.Errorf("the duration of %d ms is not from 1 ms to %s", i.DurationMS, longestItem)
	}
	if i.ofGateways() {
		return nil
	}
	address, err := url.Parse(i.URL)
	if err != nil {
		return fmt.Errorf("the URL: %w", err)
	}
	if address.Scheme != "http" && address.Scheme != "https" || address.Host == "" {
		return fmt.Errorf("the URL %q does not begin with http:// or https:// and a host, and is not %s with its SHA-256", i.URL, mediaPath)
	}
	return nil
}

// mediaPath is where gateways have media, each under its SHA-256.
const mediaPath = "/v1/media/"

// ofGateways says whether every gateway has the content.
func (i Item) ofGateways() bool { return i.URL == mediaPath+i.SHA256 }

// shows says whether an item is among those of the moment, with the same content.
func (s slot) shows(item Item) bool {
	return slices.ContainsFunc(s.items, func(i Item) bool { return i.CreativeID == item.CreativeID && i.SHA256 == item.SHA256 })
}

// equal says whether two playlists are the same, with the same schedule.
func (p Playlist) equal(o Playlist) bool {
	return p.DeviceID == o.DeviceID && p.Version == o.Version && slices.Equal(p.Items, o.Items) && (p.Schedule == nil) == (o.Schedule == nil) && slices.EqualFunc(p.Schedule, o.Schedule, func(a, b Period) bool {
		return a.From.Equal(b.From) && a.Until.Equal(b.Until) && slices.Equal(a.Loop, b.Loop)
	})
}

// slot is what a playlist has for a moment.
type slot struct {
	items []Item
	// off is outside of all periods, when nothing is shown.
	off bool
	// until is when something else may be; zero is never.
	until time.Time
}

// at is what is shown when the clock on the wall shows a time. Before it is set, a
// display does not know when it is off, and shows what was the first when it was told.
func (p Playlist) at(wall time.Time) slot {
	switch {
	case p.Schedule == nil, !clockSet(wall) && len(p.Schedule) == 0:
		return slot{items: p.Items}
	case !clockSet(wall):
		return slot{items: p.loop(p.Schedule[0])}
	}
	for _, period := range p.Schedule {
		if wall.Before(period.From) {
			return slot{off: true, until: period.From}
		}
		if wall.Before(period.Until) {
			return slot{items: p.loop(period), until: period.Until}
		}
	}
	return slot{off: true}
}

// loop is what a period shows.
func (p Playlist) loop(period Period) []Item {
	items := make([]Item, len(period.Loop))
	for n, place := range period.Loop {
		items[n] = p.Items[place]
	}
	return items
}

// readPlaylist returns the playlist that was kept, the zero one when there is none.
func readPlaylist(path, deviceID string) (Playlist, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Playlist{}, nil
	}
	if err != nil {
		return Playlist{}, fmt.Errorf("reading the playlist that was kept: %w", err)
	}
	return parsePlaylist(text, deviceID)
}

func (p Playlist) keep(path string) error {
	text, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("keeping the playlist: %w", err)
	}
	return keep(path, text)
}
