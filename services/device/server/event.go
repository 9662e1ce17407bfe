package server

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
	"github.com/marquee-ads/marquee/services/device"
)

// Event is the payload of the events about a device, a DeviceChanged.
func Event(d device.Device) ([]byte, error) {
	message := deviceMessage(d)
	message.Presence = nil
	payload, err := proto.Marshal(&devicev1.DeviceChanged{Device: message})
	if err != nil {
		return nil, fmt.Errorf("writing the event about %s: %w", d.ID, err)
	}
	return payload, nil
}

// Line reads the payload of the events about booked lines, a LineChanged.
func Line(payload []byte) (device.BookedLine, error) {
	var message orderv1.LineChanged
	if err := proto.Unmarshal(payload, &message); err != nil {
		return device.BookedLine{}, fmt.Errorf("it is no LineChanged: %w", err)
	}
	return lineOf(message.GetLine())
}
