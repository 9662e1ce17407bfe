package service

import (
	"os"

	"github.com/hashicorp/go-hclog"
)

// newLogger writes text for people, coloured only on a terminal, or a JSON
// object per line for machines.
func newLogger(cfg Config) hclog.Logger {
	output := cfg.LogOutput
	if output == nil {
		output = os.Stderr
	}
	level := hclog.LevelFromString(cfg.LogLevel)
	if level == hclog.NoLevel {
		level = hclog.Info
	}
	color := hclog.AutoColor
	if output != os.Stderr {
		color = hclog.ColorOff
	}
	return hclog.New(&hclog.LoggerOptions{
		Name:       cfg.Name,
		Level:      level,
		Output:     output,
		JSONFormat: cfg.LogFormat == "json" || cfg.LogFormat == "" && cfg.Mode == Production,
		Color:      color,
		TimeFormat: "2006-01-02T15:04:05.000Z07:00",
	})
}
