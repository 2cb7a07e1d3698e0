"""Logs in over X Protocol with Oracle's own driver and says, as one JSON line, what came of it.

Arguments: address, port, user, password, TLS (`off` or `required`).
"""

import json
import sys

import mysqlx

address, port, user, password, tls = sys.argv[1:]
modes = {"off": mysqlx.SSLMode.DISABLED, "required": mysqlx.SSLMode.REQUIRED}
try:
    session = mysqlx.get_session(
        {
            "host": address,
            "port": int(port),
            "user": user,
            "password": password,
            "ssl-mode": modes[tls],
            "connect-timeout": 20000,
        }
    )
except mysqlx.errors.Error as error:
    print(json.dumps({"number": getattr(error, "errno", -1), "text": str(error)}))
    sys.exit()
rows = session.sql("SHOW STATUS LIKE 'Mysqlx_ssl_%'").execute().fetch_all()
status = {row[0]: row[1] for row in rows}
print(json.dumps({"cipher": status["Mysqlx_ssl_cipher"], "version": status["Mysqlx_ssl_version"]}))
session.close()
