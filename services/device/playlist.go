package device

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/platform/airtime"
)

// Playlist is what a device plays.
type Playlist struct {
	DeviceID string
	// Version grows with each change; 0 before the first.
	Version    int64
	Items      []Item
	UpdateTime time.Time
}

// Item is one thing to show. Its JSON is what is stored and what players get.
type Item struct {
	CreativeID string `json:"creative_id"`
	URL        string `json:"url"`
	SHA256     string `json:"sha256"`
	MediaType  string `json:"media_type"`
	DurationMS int    `json:"duration_ms"`
}

// Programme is a playlist with the settings that say when it is played, and what is
// booked.
type Programme struct {
	Playlist
	Edition  Edition
	TimeZone string
	Hours    []airtime.Opening
	// Slots is how many the loop has, each as long as SlotLength.
	Slots      int
	SlotLength time.Duration
	// Lines are those of the time that a schedule is about, in the order of their ids.
	Lines []BookedLine
}

// Edition is of which version of its playlist, and which revision of its settings, a
// device has a programme; neither grows less. The zero one is none.
type Edition struct {
	Version, Revision int64
}

// before says whether something has changed since.
func (e Edition) before(o Edition) bool { return e.Version < o.Version || e.Revision < o.Revision }

// maxDocument bounds a playlist with what is booked, in bytes: a packet has 64 KiB,
// with the topic.
const maxDocument = 64<<10 - 256

// document is a programme as players get it.
type document struct {
	text []byte
	// until is the end of what its schedule says.
	until time.Time
	// omitted is how many slots of the first period are booked and not shown, because
	// it would be too long.
	omitted int
}

// document is the programme with a schedule from now on. With bookings it is bounded:
// when it would be too long, or have too many periods, items of the default playlist
// have fewer turns, then the schedule ends earlier. One that is too long with a single
// period is without the default items, and then without the last slots.
func (p Programme) document(now time.Time) (document, error) {
	parts, err := p.parts(now)
	if err != nil {
		return document{}, err
	}
	var d document
	_, d.until = Window(now)
	shorten := func(to int) {
		// What is over is for players whose clock is behind: by so much it may be.
		for len(parts) > to && !parts[0].Until.After(now.Add(-clockAhead)) {
			parts = parts[1:]
		}
		if len(parts) > to {
			parts = parts[:to]
			d.until = parts[to-1].Until
		}
	}
	if len(parts) > MaxPeriods {
		shorten(MaxPeriods)
	}
	for defaults, places := p.Items, maxPlaces; ; {
		if d.text, err = p.write(parts, defaults, places); err != nil {
			return document{}, err
		}
		booked := slices.ContainsFunc(parts, func(p part) bool { return p.slots != nil })
		switch {
		case len(d.text) <= maxDocument || !booked:
			return d, nil
		case places > 0:
			places /= 4
		case len(parts) > 1:
			shorten(len(parts) * 3 / 4)
		case len(defaults) > 0:
			defaults = nil
		default:
			d.omitted += omit(parts[0].slots)
		}
	}
}

// omit leaves the last eighth of what is booked out, and says how many slots.
func omit(slots []*Item) (omitted int) {
	booked := 0
	for _, item := range slots {
		if item != nil {
			booked++
		}
	}
	for slot := len(slots) - 1; slot >= 0 && omitted*8 < booked; slot-- {
		if slots[slot] != nil {
			slots[slot] = nil
			omitted++
		}
	}
	return omitted
}

func (p Programme) write(parts []part, defaults []Item, places int) ([]byte, error) {
	items, schedule := periods(parts, defaults, places)
	text, err := json.Marshal(struct {
		DeviceID string   `json:"device_id"`
		Version  int64    `json:"version"`
		Items    []Item   `json:"items"`
		Schedule []Period `json:"schedule"`
	}{p.DeviceID, p.Version, items, schedule})
	if err != nil {
		return nil, fmt.Errorf("writing a playlist: %w", err)
	}
	return text, nil
}

// mediaPath is where every gateway has what was uploaded, by its SHA-256.
const mediaPath = "/v1/media/"

// PutPlaylist sets what a device plays while nothing is booked. Errors:
// ErrNotFound, ErrSettings for items that do not fit the device.
func (s *Service) PutPlaylist(ctx context.Context, organisationID, id string, items []Item) (Playlist, error) {
	durations := make(map[string]int, len(items))
	for i, item := range items {
		if before, ok := durations[item.CreativeID]; ok && before != item.DurationMS {
			return Playlist{}, ErrSettings.WithField(fmt.Sprintf("items[%d].duration_ms", i), "item.duration", "differs from that of the same creative before it")
		}
		durations[item.CreativeID] = item.DurationMS
		if strings.HasPrefix(item.URL, mediaPath) && item.URL != mediaPath+item.SHA256 {
			return Playlist{}, ErrSettings.WithField(fmt.Sprintf("items[%d].url", i), "item.path", "is the path of other media than those with this sha256")
		}
	}
	return s.store.PutPlaylist(ctx, organisationID, id, items, s.moment(), func(settings Settings) error {
		var total time.Duration
		for i, item := range items {
			length := time.Duration(item.DurationMS) * time.Millisecond
			if length > settings.SlotLength {
				return ErrSettings.WithField(fmt.Sprintf("items[%d].duration_ms", i), "item.slot", fmt.Sprintf("is longer than the device's slot of %s", settings.SlotLength))
			}
			total += length
		}
		if total > settings.LoopLength {
			return ErrSettings.WithField("items", "items.loop", fmt.Sprintf("are %s together, longer than the device's loop of %s", total, settings.LoopLength))
		}
		return nil
	})
}

// FindPlaylist returns what a device plays. Errors: ErrNotFound.
func (s *Service) FindPlaylist(ctx context.Context, organisationID, id string) (Playlist, error) {
	return s.store.FindPlaylist(ctx, organisationID, id)
}
