package server_test

import (
	"os"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/pgtest"
)

var pg pgtest.Server

func TestMain(m *testing.M) { os.Exit(pg.Main(m)) }

// moment is a time in UTC.
func moment(year, month, day, hour, minute int) *timestamppb.Timestamp {
	return timestamppb.New(time.Date(year, time.Month(month), day, hour, minute, 0, 0, time.UTC))
}
