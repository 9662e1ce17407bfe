package server

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/service"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
	"github.com/marquee-ads/marquee/services/order"
)

// Event is the payload of the events about a line, a LineChanged.
func Event(l order.BookedLine) ([]byte, error) {
	payload, err := proto.Marshal(&orderv1.LineChanged{Line: BookedLineMessage(l)})
	if err != nil {
		return nil, fmt.Errorf("writing the event about %s: %w", l.LineID, err)
	}
	return payload, nil
}

// BookedLineMessage is a line as the device service is told of it.
func BookedLineMessage(l order.BookedLine) *orderv1.BookedLine {
	message := &orderv1.BookedLine{
		LineId: l.LineID, DeviceId: l.DeviceID, Revision: l.Revision,
		Flight: &orderv1.Flight{StartDate: l.Flight.First.String(), EndDate: l.Flight.Last.String()},
		Dayparts: service.Messages(l.Dayparts, func(o airtime.Opening) *orderv1.Daypart {
			return &orderv1.Daypart{Weekday: int32(o.Weekday), StartMinute: int32(o.Open), EndMinute: int32(o.Close)}
		}),
		Slots:     service.Messages(l.Slots, func(slot int) int32 { return int32(slot) }),
		StartTime: timestamppb.New(l.Start), EndTime: timestamppb.New(l.End),
		Removed: l.Removed, TakenDown: l.TakenDown,
	}
	if o := l.Showing; o != nil {
		message.Showing = &orderv1.Showing{
			ShowingId: o.ID, Url: o.URL, Sha256: o.SHA256, MediaType: o.MediaType, DurationMs: int32(o.Duration.Milliseconds()),
		}
	}
	return message
}
