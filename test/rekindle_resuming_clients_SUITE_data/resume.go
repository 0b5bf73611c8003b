// Two connections over TLS 1.2 that share a cache of sessions. Arguments: the port.
package main

import (
	"crypto/tls"
	"fmt"
	"os"
)

func main() {
	config := &tls.Config{
		InsecureSkipVerify: true,
		MaxVersion:         tls.VersionTLS12,
		ServerName:         "localhost",
		ClientSessionCache: tls.NewLRUClientSessionCache(8),
	}
	for n := 0; n < 2; n++ {
		connection, err := tls.Dial("tcp", "127.0.0.1:"+os.Args[1], config)
		if err != nil {
			panic(err)
		}
		fmt.Fprintln(connection, "hello")
		connection.Read(make([]byte, 6))
		fmt.Println("resumed", connection.ConnectionState().DidResume)
		connection.Close()
	}
}
