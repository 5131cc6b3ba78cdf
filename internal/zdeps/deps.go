// Package zdeps holds modules in go.mod until their rooms use them; it goes before the release.
package zdeps

import (
	_ "filippo.io/age"
	_ "github.com/coder/websocket"
	_ "github.com/eclipse/paho.golang/paho"
	_ "github.com/eclipse/paho.mqtt.golang"
	_ "github.com/johannesboyne/gofakes3"
	_ "github.com/minio/minio-go/v7"
	_ "github.com/mochi-mqtt/server/v2/packets"
)
