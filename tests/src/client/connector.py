import json, sys
import mysql.connector

login = json.loads(sys.argv[1])
options = {"ssl_disabled": login["tls"] is None}
if login["tls"] in ("1.2", "1.3"):
    options["tls_versions"] = ["TLSv" + login["tls"]]
try:
    session = mysql.connector.connect(host=login["host"], port=login["port"], user=login["user"],
                                      password=login["password"], database=login["schema"],
                                      use_pure=True, connection_timeout=20, **options)
    cursor = session.cursor()
    cursor.execute(login["query"])
    found = dict(cursor.fetchall())
    print(json.dumps({"version": found["Ssl_version"], "cipher": found["Ssl_cipher"]}))
except mysql.connector.Error as error:
    print(f"{type(error).__name__}: {error}")
    print(json.dumps({"number": error.errno, "sqlstate": error.sqlstate, "message": error.msg}))
