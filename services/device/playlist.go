package device

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
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

// Programme is a playlist with the settings that say when it is played.
type Programme struct {
	Playlist
	Edition  Edition
	TimeZone string
	Hours    []Opening
}

// Edition is of which version of its playlist, and which revision of its settings, a
// device has a programme; neither grows less. The zero one is none.
type Edition struct {
	Version, Revision int64
}

// before says whether something has changed since.
func (e Edition) before(o Edition) bool { return e.Version < o.Version || e.Revision < o.Revision }

// document is the programme as players get it, with a schedule from now on.
func (p Programme) document(now time.Time) ([]byte, error) {
	items, loop := p.Items, make([]int, len(p.Items))
	if items == nil {
		items = []Item{}
	}
	for i := range loop {
		loop[i] = i
	}
	periods, err := schedule(p.TimeZone, p.Hours, loop, now)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(struct {
		DeviceID string   `json:"device_id"`
		Version  int64    `json:"version"`
		Items    []Item   `json:"items"`
		Schedule []Period `json:"schedule"`
	}{p.DeviceID, p.Version, items, periods})
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
