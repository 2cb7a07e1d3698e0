import json, ssl, sys
import pymysql

login = json.loads(sys.argv[1])
options = {"ssl_disabled": True}
if login["tls"]:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}.get(login["tls"])
    if version:
        context.minimum_version = context.maximum_version = version
    options = {"ssl": context}
try:
    session = pymysql.connect(host=login["host"], port=login["port"], user=login["user"],
                              password=login["password"], database=login["schema"] or None,
                              connect_timeout=20, **options)
    with session.cursor() as cursor:
        cursor.execute(login["query"])
        found = dict(cursor.fetchall())
    print(json.dumps({"version": found["Ssl_version"], "cipher": found["Ssl_cipher"]}))
except pymysql.err.MySQLError as error:
    print(f"{type(error).__name__}: {error}")
    print(json.dumps({"number": error.args[0], "message": error.args[1]}))
