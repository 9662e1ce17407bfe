package device

import (
	"context"
	"encoding/json"
	"fmt"
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

// document is the playlist as players get it.
func (p Playlist) document() ([]byte, error) {
	items := p.Items
	if items == nil {
		items = []Item{}
	}
	text, err := json.Marshal(struct {
		DeviceID string `json:"device_id"`
		Version  int64  `json:"version"`
		Items    []Item `json:"items"`
	}{p.DeviceID, p.Version, items})
	if err != nil {
		return nil, fmt.Errorf("writing a playlist: %w", err)
	}
	return text, nil
}

// PutPlaylist sets what a device plays while nothing is booked. Errors:
// ErrNotFound, ErrSettings for items that do not fit the device.
func (s *Service) PutPlaylist(ctx context.Context, organisationID, id string, items []Item) (Playlist, error) {
	durations := make(map[string]int, len(items))
	for i, item := range items {
		if before, ok := durations[item.CreativeID]; ok && before != item.DurationMS {
			return Playlist{}, ErrSettings.WithField(fmt.Sprintf("items[%d].duration_ms", i), "item.duration", "differs from that of the same creative before it")
		}
		durations[item.CreativeID] = item.DurationMS
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
