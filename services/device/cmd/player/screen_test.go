package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/services/device/player"
)

func TestStatusLine(t *testing.T) {
	now := time.Date(2026, 11, 21, 22, 0, 0, 0, time.Local) // a Saturday
	for name, c := range map[string]struct {
		status player.Status
		line   string
	}{
		"Shows":    {player.Status{Item: &player.Item{CreativeID: "red"}, Until: now.Add(7 * time.Second)}, "dev_1  red 7s  v3  connected  0 unsent"},
		"Nothing":  {player.Status{}, "dev_1  nothing  v3  connected  0 unsent"},
		"Off":      {player.Status{Off: true, Until: now.Add(10 * time.Hour)}, "dev_1  off until 08:00  v3  connected  0 unsent"},
		"OffLong":  {player.Status{Off: true, Until: now.Add(26 * time.Hour)}, "dev_1  off until Mon 00:00  v3  connected  0 unsent"},
		"OffEver":  {player.Status{Off: true}, "dev_1  off  v3  connected  0 unsent"},
		"Identify": {player.Status{Identify: now.Add(time.Second), Held: 1, Dropped: 2}, "*** THIS IS dev_1  nothing  v3  connected  0 unsent  1 held  2 LOST"},
	} {
		t.Run(name, func(t *testing.T) {
			c.status.Playlist, c.status.Connection = 3, player.Connected
			require.Equal(t, c.line, statusLine("dev_1", c.status, now))
		})
	}
}

func TestWrittenText(t *testing.T) {
	text := player.Text{Text: "Spring sale\nnow", Color: "#FF0000", Background: "#000", Alignment: "right", Bold: true}
	require.Equal(t, "\n    Spring sale\n    now", (&screen{}).written(text))
	terminal := &screen{terminal: true}
	require.Equal(t, "\n    \x1b[38;2;255;0;0m\x1b[1m Spring sale \x1b[0m\n    \x1b[38;2;255;0;0m\x1b[1m         now \x1b[0m", terminal.written(text))
	text.Alignment, text.Color, text.Bold = "left", "", false
	require.Equal(t, "\n     Spring sale \x1b[0m\n     now         \x1b[0m", terminal.written(text))
	text.Alignment = "center"
	require.Equal(t, "\n     Spring sale \x1b[0m\n         now     \x1b[0m", terminal.written(text))
}
